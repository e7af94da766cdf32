-- Sets records of a user's devices unless better ones are there (route.Record.YieldsTo),
-- and forgets the user's expired ghosts.
-- KEYS[1] the user's hash device → record. ARGV: device, its record, and so on.
-- Returns how many were set.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local record = '^(%d+):(%d):(%d+):(%d+):%d+:(%d+):([^:]*)'

-- one returns 1 if it was set.
local function one(device, new)
  local e, state, session, inc, till, node = string.match(new, record)
  e, till = tonumber(e), tonumber(till)
  local all = redis.call('HGETALL', KEYS[1])
  local set, awake, last = not (state == '3' and till <= now), false, 0
  for i = 1, #all, 2 do
    local e2, state2, session2, inc2, till2, node2 = string.match(all[i + 1], record)
    e2, till2 = tonumber(e2), tonumber(till2)
    if not e2 or (state2 == '3' and till2 <= now) then
      redis.call('HDEL', KEYS[1], all[i])
      state2 = nil
    elseif all[i] == device then
      set = e2 < e or (e2 == e and (state2 ~= '1' or (session2 == session and inc2 == inc and node2 == node)))
      if set then state2 = nil end
    end
    if state2 == '3' then last = math.max(last, till2) elseif state2 then awake = true end
  end
  if not set then return 0 end
  if state == '3' and till <= now then
    redis.call('HDEL', KEYS[1], device)
  else
    redis.call('HSET', KEYS[1], device, new)
    if state == '3' then last = math.max(last, till) else awake = true end
  end
  -- A hash of ghosts only goes by itself with the last of them.
  if awake then
    redis.call('PERSIST', KEYS[1])
  elseif last > 0 then
    redis.call('PEXPIREAT', KEYS[1], string.format('%d', last))
  end
  return 1
end

local set = 0
for i = 1, #ARGV, 2 do set = set + one(ARGV[i], ARGV[i + 1]) end
return set
