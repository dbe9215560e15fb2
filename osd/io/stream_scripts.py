"""Lua scripts that Redis runs on the outcome stream, so that each is atomic with any number of writers.

An entry has three fields: `seq`, the number of outcomes ever written up to and including it; `end`, the number of
outcome bytes ever written up to and including it; and `outcome`. The stream's size in bytes, and how many outcomes a
reader is behind, are therefore differences between two entries, whoever wrote or trimmed the stream.
"""

from __future__ import annotations

_FIELDS = """
local function seq(entry) return entry[2][1] == 'seq' and tonumber(entry[2][2]) end
local function finish(entry) return tonumber(entry[2][4]) end
local function newest()  -- the newest entry of ours; entries that somebody else added are skipped
    local entry = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
    while entry and not seq(entry) do
        entry = redis.call('XREVRANGE', KEYS[1], '(' .. entry[1], '-', 'COUNT', 1)[1]
    end
    return entry
end
"""

# KEYS: stream, mark. ARGV: outcome, max entries, max bytes, seconds that the mark is kept.
# Trims before it adds, so that a Redis that is out of memory can make room by dropping the oldest.
PUT = (
    _FIELDS
    + """
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
local last = newest()
local count = (last and seq(last) or 0) + 1
local total = (last and finish(last) or 0) + #ARGV[1]
local length = redis.call('XLEN', KEYS[1])
while length > 0 do
    local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
    local fits = seq(oldest) and total - (finish(oldest) - #oldest[2][6]) <= tonumber(ARGV[3])
    if fits and length < tonumber(ARGV[2]) then break end
    length = length - redis.call('XTRIM', KEYS[1], 'MAXLEN', length - 1)
end
redis.call('XADD', KEYS[1], '*', 'seq', string.format('%.0f', count), 'end', string.format('%.0f', total),
    'outcome', ARGV[1])
redis.call('SET', KEYS[2], 1, 'EX', ARGV[4])
return 1
"""
)

# KEYS: stream. ARGV: group.
LAG = (
    _FIELDS
    + """
local last = newest()
if not last then return 0 end
local after = '-'
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local info = {}
    for i = 1, #group, 2 do info[group[i]] = group[i + 1] end
    if info['name'] == ARGV[1] then after = '(' .. info['last-delivered-id'] end
end
local entry = redis.call('XRANGE', KEYS[1], after, '+', 'COUNT', 1)[1]
while entry and not seq(entry) do
    entry = redis.call('XRANGE', KEYS[1], '(' .. entry[1], '+', 'COUNT', 1)[1]
end
return entry and seq(last) - seq(entry) + 1 or 0
"""
)

# KEYS: stream. The number of outcome bytes ever written.
TOTAL_BYTES = (
    _FIELDS
    + """
local last = newest()
return last and string.format('%.0f', finish(last)) or '0'
"""
)
