-- Sets a node's count of a tenant's connections.
-- KEYS[1] the tenant's hash node → count:touched (ms). ARGV: node, n.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local n = tonumber(ARGV[2])
if n <= 0 then return redis.call('HDEL', KEYS[1], ARGV[1]) end
return redis.call('HSET', KEYS[1], ARGV[1], string.format('%d:%d', n, now))
