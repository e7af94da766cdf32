-- Takes up to want tokens from a bucket of one second's worth.
-- KEYS[1] the tenant's bucket. ARGV: rate a second, want, both positive.
-- Returns the number taken.
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local rate = tonumber(ARGV[1])
local v = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens, at = tonumber(v[1]), tonumber(v[2])
if tokens and at then
  tokens = math.min(rate, tokens + math.max(0, now - at) * rate / 1000000)
else
  tokens = rate
end
local got = math.min(tonumber(ARGV[2]), math.floor(tokens))
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens - got), 'at', string.format('%d', now))
-- A bucket that nobody asked for a second is full, and so is a forgotten one.
redis.call('PEXPIRE', KEYS[1], 2000)
return got
