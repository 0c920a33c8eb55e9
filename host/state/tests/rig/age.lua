-- Makes all that the hosts wrote older by ARGV[1] microseconds, as redis.rs says how it is written.
local by = tonumber(ARGV[1])

local function older(time)
    return string.format('%.17g', tonumber(time) - by)
end

local function age_scores(key)
    local all = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
    for at = 1, #all, 2 do redis.call('ZADD', key, older(all[at + 1]), all[at]) end
end

local function age_text(key, pattern, ...)
    local text = redis.call('GET', key)
    local parts = { string.match(text, pattern) }
    for _, at in ipairs({ ... }) do parts[at] = older(parts[at]) end
    redis.call('SET', key, table.concat(parts, ' '), 'KEEPTTL')
end

for _, key in ipairs(redis.call('KEYS', 'interlock:*')) do
    local rest = string.match(key, '^interlock:{[^}]*}:(.*)$')
    local kind = string.sub(rest, 1, 2)
    local life = redis.call('PTTL', key)
    if life >= 0 and life * 1000 <= by then
        redis.call('DEL', key)
    else
        if rest == 'ends' or kind == 'c:' then age_scores(key) end
        if kind == 'b:' then age_text(key, '^(%S+) (%S+)$', 2) end
        if kind == 'w:' then age_text(key, '^(%S+) (%S+) (%S+)$', 1, 2) end
        if kind == 'r:' then age_text(key, '^(%S+) (.*)$', 1) end
        if life >= 0 then redis.call('PEXPIRE', key, math.ceil((life * 1000 - by) / 1000)) end
    end
end
