-- Gives the lead up. KEYS: lease. ARGV: instance.
if redis.call('HGET', KEYS[1], 'instance') == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
