local id, extra, overhead = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local life, lease = tonumber(ARGV[7]), tonumber(ARGV[8])

local held = reservation(id)
if not held then return { 'unknown' } end
local size = #held.key + overhead
local began, ends, used = window(held.key, held.per)
if used + extra > held.limit and sweep(1000) then
    began, ends, used = window(held.key, held.per)
end
if used + extra > held.limit then return { 'denied' } end
if not fits({ 'w:' .. held.key, size }) then return { 'quota' } end
-- Something may have been given back meanwhile; this one, too, if nobody renewed it.
held = reservation(id)
began, ends, used = window(held.key, held.per)

charge(held.key, size, began, ends, used + extra)
held.here = held.began == began and held.here + extra or extra
held.began, held.total = began, held.total + extra
hold(id, size, held, life, lease)
return { 'ok' }
