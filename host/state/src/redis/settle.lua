-- Without a number, `actual` is what is held.
local id, actual, overhead = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])

local held = reservation(id)
if not held then return { 'unknown' } end
forget('r:' .. id)

local began, ends, used = window(held.key, held.per)
local beyond = (actual or held.total) - held.total
if beyond > 0 then
    used = used + beyond
elseif held.began == began then
    used = math.max(0, used + math.max(beyond, -held.here))
else
    return { 'ok' }
end
-- The reservation's key and bytes are what a window that has to be made again needs at most.
charge(held.key, #held.key + overhead, began, ends, used)
return { 'ok' }
