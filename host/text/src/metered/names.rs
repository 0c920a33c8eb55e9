//! Filters and tests by what they do with values, and so by what has to be checked.

/// Filters that hand on what is in a value without looking at it.
pub(super) const SHALLOW: [&str; 12] = [
    "attr", "batch", "count", "d", "default", "first", "items", "last", "length", "list",
    "reverse", "slice",
];
/// Filters that go over their first argument; those that are not here take what is false for none.
pub(super) const ITERATING: [&str; 13] = [
    "batch", "first", "groupby", "join", "last", "list", "max", "min", "reverse", "slice", "sort",
    "sum", "unique",
];
/// Filters that compare each item with some others.
pub(super) const SORTING: [&str; 6] = ["dictsort", "groupby", "max", "min", "sort", "unique"];
/// Filters that make no list and no dict, or weigh for themselves.
pub(super) const MAKING_NONE: [&str; 33] = [
    "abs",
    "attr",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "e",
    "escape",
    "first",
    "float",
    "forceescape",
    "format",
    "indent",
    "int",
    "join",
    "last",
    "length",
    "lower",
    "max",
    "min",
    "pprint",
    "replace",
    "round",
    "safe",
    "string",
    "title",
    "tojson",
    "trim",
    "truncate",
    "upper",
    "urlencode",
    "wordcount",
];
/// Tests that look into values.
pub(super) const COMPARING: [&str; 23] = [
    "!=",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "endingwith",
    "eq",
    "equalto",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "le",
    "lessthan",
    "lower",
    "lt",
    "ne",
    "number",
    "sameas",
    "startingwith",
    "upper",
    "divisibleby",
];
