-- Returns the name of what is in Redis, which is ARGV[1] if it has none, and the name
-- of what was whole last.
-- KEYS[1] the marker, KEYS[2] what is whole.
local v = redis.call('GET', KEYS[1])
if not v or v == '' then
  v = ARGV[1]
  redis.call('SET', KEYS[1], v)
end
return {v, redis.call('GET', KEYS[2]) or ''}
