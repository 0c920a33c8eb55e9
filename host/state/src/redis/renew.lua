-- ARGV[5..] are threes: the key of a slot, or '' for a reservation; its number; and how long it may
-- still be held. Each is held for a lease from now on, if it has not ended. What has is the answer.
local lease = tonumber(ARGV[4])
local lost, entries = {}, {}

-- A write that a server without memory allows: what is held must not end for that.
redis.call('ZREM', ENDS, '')

local function renew_slot(entry, slot, ends)
    local held = tonumber(redis.call('ZSCORE', AT .. entry, slot))
    if not held or held <= now then return false end
    redis.call('ZADD', AT .. entry, text(ends), slot)
    entries[entry] = true
    return true
end

local function renew_reservation(id, ends)
    local held = reservation(id)
    if not held or held.total == 0 then return false end
    redis.call('ZADD', ENDS, text(ends), 'r:' .. id)
    return true
end

for at = 5, #ARGV, 3 do
    local key, number = ARGV[at], ARGV[at + 1]
    local ends = now + math.min(lease, tonumber(ARGV[at + 2]))
    local renewed
    if key == '' then
        renewed = renew_reservation(number, ends)
    else
        renewed = renew_slot('c:' .. key, number, ends)
    end
    if not renewed then
        lost[#lost + 1] = key
        lost[#lost + 1] = number
    end
end

for entry in pairs(entries) do
    local last = redis.call('ZRANGE', AT .. entry, -1, -1, 'WITHSCORES')
    keep(entry, size_of(entry), tonumber(last[2]))
end
return lost
