-- A generic cell rate algorithm (ITU-T I.371) on the server's clock. The key holds the theoretical
-- arrival time in microseconds since 1970: when the cell would be full again.
--
-- KEYS[2] holds the number of what this node settled last.
--
-- ARGV: units a minute; units at once; units used already, below zero: given back; units without which
-- nothing is to be granted; most units to be granted; units that are used as far as the node knows, for
-- what was used while the server was away; number of what is settled; milliseconds to remember it.
-- Returns: units granted; units left; the server's time in microseconds.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local unit = 60000000 / ARGV[1]
local burst = tonumber(ARGV[2])
local settle, need, want = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local room = burst * unit

-- Sent again, for want of an answer, while a server that hung still had it to read.
if settle ~= 0 then
  local last = tonumber(redis.pcall('GET', KEYS[2]))
  if last and last >= tonumber(ARGV[7]) then
    settle = 0
  else
    redis.call('SET', KEYS[2], ARGV[7], 'PX', ARGV[8])
  end
end

-- What is no number, or of another type, is as good as nothing; SET below replaces it.
local kept = redis.pcall('GET', KEYS[1])
local full = type(kept) == 'string' and tonumber(kept) or now
if not (full > now) then full = now end
full = math.max(full, now + ARGV[6] * unit)
full = full + settle * unit
-- A clock that was set back, or a debt beyond all reason, locks nobody out for long.
if full > now + 10 * room then full = now + 10 * room end
if full < now then full = now end

-- A thousandth of a unit is what rounding may have taken.
local free = math.floor((now + room - full) / unit + 0.001)
local granted = 0
-- More than a burst is granted when little else is out, and leaves a debt: nobody is refused for ever.
-- "Little" and not "nothing", since each node holds a slice.
if (free >= need and free > 0) or (need > burst and free >= 0.8 * burst) then
  granted = math.max(need, math.min(free, want))
  full = full + granted * unit
end
if full > now then
  redis.call('SET', KEYS[1], string.format('%.3f', full), 'PX', math.ceil((full - now) / 1000))
else
  redis.call('DEL', KEYS[1])
end
return {granted, math.max(free - granted, 0), now}
