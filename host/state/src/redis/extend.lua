local id, extra, life, overhead = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])

local held = reservation(id)
if not held then return { 'unknown' } end
local began, ends, used = window(held.key, held.per)
if used + extra > held.limit then return { 'denied' } end
local size = #held.key + overhead
if not fits({ 'w:' .. held.key, size }) then return { 'quota' } end

charge(held.key, size, began, ends, used + extra)
held.here = held.began == began and held.here + extra or extra
held.began, held.total = began, held.total + extra
hold(id, size, held, life)
return { 'ok' }
