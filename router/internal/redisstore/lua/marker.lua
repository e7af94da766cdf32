-- Returns the name of what is in Redis, which is ARGV[1] if it has none.
-- KEYS[1] the marker.
local v = redis.call('GET', KEYS[1])
if v and v ~= '' then return v end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
