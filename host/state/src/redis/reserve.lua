local key, size = ARGV[4], tonumber(ARGV[5])
local limit, per, estimate = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local id, life, lease = ARGV[9], tonumber(ARGV[10]), tonumber(ARGV[11])

local began, ends, used = window(key, per)
-- What is held for hosts that are gone makes room before anybody is refused.
if used + estimate > limit and sweep(1000) then began, ends, used = window(key, per) end
local resets_in = ends - now
if used + estimate > limit then return { 'denied', text(resets_in) } end
if not fits({ 'w:' .. key, size, 'r:' .. id, size }) then return { 'quota' } end
began, ends, used = window(key, per) -- which may have got something back meanwhile

used = used + estimate
charge(key, size, began, ends, used)
local held = { began = began, here = estimate, total = estimate, limit = limit, per = per, key = key }
hold(id, size, held, life, lease)
return { 'ok', text(limit - used), text(resets_in) }
