-- Takes a lock, or prolongs it for its owner. KEYS[1] the lock.
-- ARGV: owner, ttl in ms. Returns 1 if owner holds it now.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
