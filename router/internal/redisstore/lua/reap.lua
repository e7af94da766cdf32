-- Makes ghosts of a user's routes that name a dead incarnation, and forgets
-- expired ones. KEYS[1] the user's hash device → record.
-- ARGV: incarnation, node (escaped), ttl in ms. Returns the devices and epochs of
-- those that it changed, in turn.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local all = redis.call('HGETALL', KEYS[1])
local changed, awake, last = {}, false, 0
for i = 1, #all, 2 do
  local e, state, session, inc, version, till, rest =
    string.match(all[i + 1], '^(%d+):(%d):(%d+):(%d+):(%d+):(%d+):(.*)$')
  till = tonumber(till)
  if not e or (state == '3' and till <= now) then
    redis.call('HDEL', KEYS[1], all[i])
    state = nil
  elseif state ~= '3' and inc == ARGV[1] and string.match(rest, '^[^:]*') == ARGV[2] then
    changed[#changed + 1] = all[i]
    changed[#changed + 1] = e
    state, till = '3', now + tonumber(ARGV[3])
    if till <= now then
      redis.call('HDEL', KEYS[1], all[i])
      state = nil
    else
      redis.call('HSET', KEYS[1], all[i],
        table.concat({e, state, session, inc, version, string.format('%d', till), rest}, ':'))
    end
  end
  if state == '3' then last = math.max(last, till) elseif state then awake = true end
end
-- A hash of ghosts only goes by itself with the last of them.
if #changed > 0 and not awake and last > 0 then
  redis.call('PEXPIREAT', KEYS[1], string.format('%d', last))
end
return changed
