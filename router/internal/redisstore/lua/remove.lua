-- Ends a lease if it is this incarnation's; the incarnation stays known.
-- KEYS[1] the hash of leases. ARGV: id, incarnation (20 digits).
local v = redis.call('HGET', KEYS[1], ARGV[1])
if v and string.sub(v, 1, 20) == ARGV[2] then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ':0:')
end
return 1
