-- Takes or renews a lease. KEYS[1] the hash of leases.
-- ARGV: id, incarnation (20 digits, so that text compares like numbers),
-- lease in ms, description. Value: incarnation:until:description.
-- Returns 0 when a newer incarnation is known.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local v = redis.call('HGET', KEYS[1], ARGV[1])
if v and string.sub(v, 1, 20) > ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%s:%d:%s', ARGV[2], now + tonumber(ARGV[3]), ARGV[4]))
return 1
