-- Returns incarnations that hold no lease and are not dealt with, each followed
-- by why (route.Death). KEYS: gateways' leases, the dead, the buried.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local out, listed = redis.call('HGETALL', KEYS[2]), {}
for i = 1, #out, 2 do listed[out[i]] = true end
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local inc, till = string.match(all[i + 1], '^(%d+):(%d+):')
  if till and tonumber(till) <= now then
    local ref = all[i] .. '/' .. inc
    if not listed[ref] and not redis.call('ZSCORE', KEYS[3], ref) then
      out[#out + 1] = ref
      out[#out + 1] = '1'
    end
  end
end
return out
