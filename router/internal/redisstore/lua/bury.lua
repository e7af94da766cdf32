-- Ends an incarnation for good unless it holds a lease.
-- KEYS: gateways' leases, the dead, the buried.
-- ARGV: id, incarnation (20 digits), memory in ms. Returns 1 if it is buried.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local v = redis.call('HGET', KEYS[1], ARGV[1])
local till = v and string.sub(v, 1, 20) == ARGV[2] and string.match(v, '^%d+:(%d+):')
if till and tonumber(till) > now then return 0 end
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', string.format('%d', now - tonumber(ARGV[3])))
redis.call('ZADD', KEYS[3], string.format('%d', now), ARGV[1] .. '/' .. ARGV[2])
redis.call('HSET', KEYS[2], ARGV[1] .. '/' .. ARGV[2], '4')
return 1
