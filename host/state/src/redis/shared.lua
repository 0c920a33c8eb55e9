-- What each script begins with. ARGV[1..3] are the policy's quota of keys and bytes, and the longest
-- life in milliseconds; a script's own arguments follow from ARGV[4] on. Times are microseconds.
local AT = KEYS[1]
local KEYS_MAX, BYTES_MAX, LIFE_MAX = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local ENDS, SIZES = AT .. 'ends', AT .. 'sizes'

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- All digits of a double: 17 bring back the same one.
local function text(number)
    return string.format('%.17g', number)
end

local function size_of(entry)
    return tonumber(redis.call('HGET', SIZES, entry))
end

local function forget(entry)
    local size = size_of(entry)
    if size then
        redis.call('HDEL', SIZES, entry)
        redis.call('HINCRBY', SIZES, '', -size)
    end
    redis.call('ZREM', ENDS, entry) -- also of an account whose sizes were evicted
    return redis.call('DEL', AT .. entry) == 1
end

local give_back -- below; it needs what is between
local sweeping = false

-- Takes off the account what has ended; whether there was any. A reservation whose host renews it no
-- more is given back first. What that writes is not to sweep again: it would meet the same entry.
local function sweep(most)
    if sweeping then return false end
    sweeping = true
    local ended = redis.call('ZRANGEBYSCORE', ENDS, '-inf', now, 'LIMIT', 0, most)
    for _, entry in ipairs(ended) do
        if not give_back(entry) then forget(entry) end
    end
    sweeping = false
    return #ended > 0
end

-- Sizes whose ends were evicted would never be taken off: such an account begins anew. Asked first,
-- since after any write a server without memory lets the others of its script pass.
local function drop_orphans()
    if redis.call('EXISTS', ENDS) == 0 and redis.call('EXISTS', SIZES) == 1 then
        redis.call('DEL', SIZES)
    end
end

-- Whether these entries would fit at these sizes: {entry, size, entry, size}. Sweeps if they would
-- not. Bounded, since nobody else is served meanwhile: what it leaves, the next one takes.
local function fits(wanted)
    local function fit()
        local keys = redis.call('ZCARD', ENDS)
        local bytes = tonumber(redis.call('HGET', SIZES, '') or 0)
        local new, more = 0, 0
        for at = 1, #wanted, 2 do
            local old = size_of(wanted[at])
            if not old then new = new + 1 end
            more = more + wanted[at + 1] - (old or 0)
        end
        return (new == 0 or keys + new <= KEYS_MAX) and (more <= 0 or bytes + more <= BYTES_MAX)
    end
    drop_orphans()
    if fit() then return true end
    sweep(1000)
    return fit()
end

-- Enters what was just written into the account, and lets it end.
local function keep(entry, size, ends)
    drop_orphans()
    local old = size_of(entry)
    if not old then sweep(2) end
    if old ~= size then
        redis.call('HSET', SIZES, entry, size)
        redis.call('HINCRBY', SIZES, '', size - (old or 0))
    end
    redis.call('ZADD', ENDS, text(ends), entry)
    redis.call('PEXPIREAT', AT .. entry, string.format('%.0f', math.ceil(ends / 1000)))
    redis.call('PEXPIRE', ENDS, LIFE_MAX)
    redis.call('PEXPIRE', SIZES, LIFE_MAX)
end

-- A window as it is now: when it began, when it ends, and what is charged to it. One that has ended,
-- or is not there, begins now. One that began in the future does so too, with all its charges:
-- somebody set the server's clock back.
local function window(key, per)
    local held = redis.call('GET', AT .. 'w:' .. key)
    if held then
        local began, ends, used = string.match(held, '^(%S+) (%S+) (%S+)$')
        began, ends, used = tonumber(began), tonumber(ends), tonumber(used)
        if began > now then return now, now + per, used end
        if now < ends then return began, ends, used end
    end
    return now, now + per, 0
end

local function charge(key, size, began, ends, used)
    redis.call('SET', AT .. 'w:' .. key, text(began) .. ' ' .. text(ends) .. ' ' .. text(used))
    keep('w:' .. key, size, ends)
end

local function reservation(id)
    local held = redis.call('GET', AT .. 'r:' .. id)
    if not held then return nil end
    local began, here, total, limit, per, key =
        string.match(held, '^(%S+) (%S+) (%S+) (%S+) (%S+) (.*)$')
    return {
        began = tonumber(began), here = tonumber(here), total = tonumber(total),
        limit = tonumber(limit), per = tonumber(per), key = key,
    }
end

-- Holds a reservation until its lease ends, and remembers it for as long as `life`.
local function hold(id, size, held, life, lease)
    local numbers = { held.began, held.here, held.total, held.limit, held.per }
    for at, number in ipairs(numbers) do numbers[at] = text(number) end
    redis.call('SET', AT .. 'r:' .. id, table.concat(numbers, ' ') .. ' ' .. held.key)
    keep('r:' .. id, size, now + lease)
    redis.call('PEXPIRE', AT .. 'r:' .. id, string.format('%.0f', math.ceil(life / 1000)))
end

-- Whether this is a reservation that still holds something: then it holds nothing any more, and is
-- remembered for the rest of its life, so that what was used can still be charged.
function give_back(entry)
    local id = string.match(entry, '^r:(.*)$')
    local held = id and reservation(id)
    if not held or held.total == 0 then return false end
    local size = size_of(entry) or #held.key + 128 -- as reserve.lua is told; see ENTRY_BYTES
    local began, ends, used = window(held.key, held.per)
    if held.began == began then
        -- A window is as large as what is reserved in it.
        charge(held.key, size, began, ends, math.max(0, used - held.here))
    end
    local life = redis.call('PTTL', AT .. entry) * 1000
    held.here, held.total = 0, 0
    hold(id, size, held, life, life)
    return true
end
