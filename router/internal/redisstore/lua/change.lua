-- Takes a device's route out of the live state if it is the one that is meant,
-- and forgets the user's expired ghosts.
-- KEYS[1] the user's hash device → record. ARGV: device, epoch, incarnation,
-- node (escaped), session (0: any), new state (2 closing, 3 ghost), ttl in ms.
-- Returns 1 if it was applied.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local all = redis.call('HGETALL', KEYS[1])
local applied, awake, last = 0, false, 0
for i = 1, #all, 2 do
  local device, value = all[i], all[i + 1]
  local e, state, session, inc, version, till, rest =
    string.match(value, '^(%d+):(%d):(%d+):(%d+):(%d+):(%d+):(.*)$')
  till = tonumber(till)
  if not e or (state == '3' and till <= now) then
    redis.call('HDEL', KEYS[1], device)
    state = nil
  elseif device == ARGV[1] and state ~= '3' and e == ARGV[2] and inc == ARGV[3]
    and string.match(rest, '^[^:]*') == ARGV[4] and (ARGV[5] == '0' or session == ARGV[5]) then
    applied, state, till = 1, ARGV[6], 0
    if state == '3' and tonumber(ARGV[7]) <= 0 then
      redis.call('HDEL', KEYS[1], device)
      state = nil
    else
      if state == '3' then till = now + tonumber(ARGV[7]) end
      -- Joined, not formatted: %s ends at a NUL.
      redis.call('HSET', KEYS[1], device,
        table.concat({e, state, session, inc, version, string.format('%d', till), rest}, ':'))
    end
  end
  if state == '3' then last = math.max(last, till) elseif state then awake = true end
end
-- A hash of ghosts only goes by itself with the last of them.
if applied == 1 and not awake and last > 0 then
  redis.call('PEXPIREAT', KEYS[1], string.format('%d', last))
end
return applied
