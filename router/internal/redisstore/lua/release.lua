-- Gives n connections back.
-- KEYS[1] the tenant's hash node → count:touched (ms). ARGV: node, n.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local v = redis.call('HGET', KEYS[1], ARGV[1])
if not v then return 0 end
local left = (tonumber(string.match(v, '^%d+')) or 0) - tonumber(ARGV[2])
if left > 0 then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%d:%d', left, now))
else
  redis.call('HDEL', KEYS[1], ARGV[1])
end
return 1
