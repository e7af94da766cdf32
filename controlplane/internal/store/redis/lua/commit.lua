-- Applies a batch if the term leads and every version is as expected.
-- KEYS: lease, items (hash key → "version:value"), version counter, logs...
-- ARGV: term, most items, number of changes, then per change: key, version, '1' to
-- remove or '0', value; then per log: value, keep.
-- Returns {'ok', versions...}, {'deposed'}, {'conflict'} or {'full'}.
if redis.call('HGET', KEYS[1], 'term') ~= ARGV[1] then return {'deposed'} end
local n, more = tonumber(ARGV[3]), 0
for i = 0, n - 1 do
  local at = 4 + 4 * i
  local have = redis.call('HGET', KEYS[2], ARGV[at])
  local version = have and string.match(have, '^(%d+):') or '0'
  if version ~= ARGV[at + 1] then return {'conflict'} end
  if ARGV[at + 2] == '1' then more = more - 1 elseif version == '0' then more = more + 1 end
end
if more > 0 and redis.call('HLEN', KEYS[2]) + more > tonumber(ARGV[2]) then return {'full'} end
local out = {'ok'}
for i = 0, n - 1 do
  local at = 4 + 4 * i
  if ARGV[at + 2] == '1' then
    redis.call('HDEL', KEYS[2], ARGV[at])
    out[#out + 1] = '0'
  else
    local version = string.format('%.0f', redis.call('INCR', KEYS[3]))
    redis.call('HSET', KEYS[2], ARGV[at], version .. ':' .. ARGV[at + 3])
    out[#out + 1] = version
  end
end
for i = 4, #KEYS do
  local at = 4 + 4 * n + 2 * (i - 4)
  redis.call('XADD', KEYS[i], 'MAXLEN', ARGV[at + 1], '*', 'v', ARGV[at])
end
return out
