-- Counts one more connection unless the sum over living nodes is at the limit.
-- KEYS[1] the tenant's hash node → count.
-- ARGV: node, limit (0: none), living nodes...
-- Returns {1 or 0, the sum before}.
local sum = 0
for i = 3, #ARGV do
  sum = sum + tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or 0)
end
local limit = tonumber(ARGV[2])
if limit > 0 and sum >= limit then return {0, sum} end
redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
-- Dead nodes' counts are ignored above; the hash goes when nobody connects.
redis.call('PEXPIRE', KEYS[1], 604800000)
return {1, sum}
