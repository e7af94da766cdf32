-- Says that what is in Redis is whole, or with an empty ARGV[2] that it is not, if its
-- name is ARGV[1].
-- KEYS[1] the marker, KEYS[2] what is whole.
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[2], ARGV[2]) end
return 0
