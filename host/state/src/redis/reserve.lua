local key, size = ARGV[4], tonumber(ARGV[5])
local limit, per, estimate = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local id, life = ARGV[9], tonumber(ARGV[10])

local began, ends, used = window(key, per)
local resets_in = ends - now
if used + estimate > limit then return { 'denied', text(resets_in) } end
if not fits({ 'w:' .. key, size, 'r:' .. id, size }) then return { 'quota' } end

used = used + estimate
charge(key, size, began, ends, used)
local held = { began = began, here = estimate, total = estimate, limit = limit, per = per, key = key }
hold(id, size, held, life)
return { 'ok', text(limit - used), text(resets_in) }
