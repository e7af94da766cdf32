-- Ends a lease if it is this incarnation's; the incarnation stays known.
-- KEYS[1] the hash of leases; for gateways also KEYS[2] the dead.
-- ARGV: id, incarnation (20 digits). Returns 1 if it ended.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local v = redis.call('HGET', KEYS[1], ARGV[1])
if not v or string.sub(v, 1, 20) ~= ARGV[2] then return 0 end
local till, what = string.match(v, '^%d+:(%d+):(.*)$')
if not till or tonumber(till) <= now then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ':' .. string.format('%d', now) .. ':' .. what)
if KEYS[2] then redis.call('HSET', KEYS[2], ARGV[1] .. '/' .. ARGV[2], '2') end
return 1
