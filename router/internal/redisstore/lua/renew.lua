-- Takes or renews a lease. KEYS[1] the hash of leases.
-- ARGV: id, incarnation (20 digits, so that text compares like numbers),
-- lease in ms, description, memory in ms. Value: incarnation:until:description.
-- Returns 0 when a newer incarnation is known.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local v = redis.call('HGET', KEYS[1], ARGV[1])
local till = v and string.match(v, '^%d+:(%d+):')
if till and tonumber(till) + tonumber(ARGV[5]) > now and string.sub(v, 1, 20) > ARGV[2] then return 0 end
-- Joined, not formatted: %s ends at a NUL.
redis.call('HSET', KEYS[1], ARGV[1],
  ARGV[2] .. ':' .. string.format('%d', now + tonumber(ARGV[3])) .. ':' .. ARGV[4])
return 1
