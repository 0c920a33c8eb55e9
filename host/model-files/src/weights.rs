//! Which `.safetensors` files are the model.
//!
//! Repositories carry their weights twice or more: in shards and whole, as `consolidated`, with an
//! adapter beside them. Loaders agree on `model.safetensors.index.json` and `model.safetensors`; for
//! the rest, files that differ only in their number are one set.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use crate::{JSON_BYTES_MAX, NotAModel, read};

/// What every tool calls the index of weights in several files.
const INDEX: &str = "model.safetensors.index.json";
const ENDING: &str = ".safetensors";
pub(crate) const SINGLE: &str = "model.safetensors";

/// Sets of weights by what their files are called without number, best first, where there are
/// several.
const PREFERRED: [&str; 2] = ["model", "weights"];

/// Adapters change a model that lies elsewhere; they are never it.
const ADAPTERS: [&str; 3] = ["adapter", "adapters", "adapter_model"];

/// Where to find the names of the weights' files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightFiles {
    /// In this file: [`weights_named_in`] reads it.
    Index(String),
    /// The files that hold the weights, by name.
    Files(Vec<String>),
}

/// Why the names of a folder's files do not say which are the weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadWeights {
    /// No file of weights was found.
    None,
    /// The file of this name is missing from a numbered set.
    Lacks(String),
    /// More than one set, in words.
    Several(String),
}

impl WeightFiles {
    /// Chooses among the names of all files of a folder, or of a repository.
    ///
    /// # Errors
    ///
    /// When there is none, or none is to be preferred.
    pub fn among<'a>(names: impl Iterator<Item = &'a str>) -> Result<Self, BadWeights> {
        let names: BTreeSet<&str> = names.filter(|name| !name.contains('/')).collect();
        let index = |name: &&str| without_ending(name, ".safetensors.index.json").is_some();
        let indexes: Vec<&str> = names.iter().copied().filter(index).collect();
        // The last, which is the one in small letters where there are several.
        let usual = indexes.iter().rfind(|name| name.eq_ignore_ascii_case(INDEX));
        match (usual, &indexes[..]) {
            (Some(index), _) | (None, [index]) => return Ok(Self::Index((*index).to_owned())),
            (None, []) => {}
            (None, [one, other, ..]) => {
                return Err(BadWeights::Several(format!("{one} and {other} both name weights")));
            }
        }
        let mut sets: BTreeMap<String, Vec<Numbered<'_>>> = BTreeMap::new();
        for &name in &names {
            let Some(stem) = without_ending(name, ENDING) else { continue };
            let numbered = Numbered::new(name, stem);
            let set = numbered.set.to_ascii_lowercase();
            if !ADAPTERS.contains(&&*set) {
                sets.entry(set).or_default().push(numbered);
            }
        }
        let preferred = PREFERRED.iter().find_map(|&set| sets.remove(set));
        let set = match (preferred, sets.len()) {
            (Some(set), _) => set,
            (None, 0) => return Err(BadWeights::None),
            (None, 1) => sets.into_values().flatten().collect(),
            (None, _) => {
                let named: Vec<_> =
                    sets.keys().take(4).map(|set| format!("{set}{ENDING}")).collect();
                return Err(BadWeights::Several(format!(
                    "{} are several models",
                    named.join(" and ")
                )));
            }
        };
        // Whole files win over shards, as with every loader.
        let whole = set.iter().rfind(|file| file.number.is_none());
        if let Some(whole) = whole {
            return Ok(Self::Files(vec![whole.name.to_owned()]));
        }
        if let Some(missing) = set.first().and_then(|first| first.missing_of(&set)) {
            return Err(BadWeights::Lacks(missing));
        }
        Ok(Self::Files(set.iter().map(|file| file.name.to_owned()).collect()))
    }
}

/// What stands before this ending, whichever letters of it are capitals: some disks and some people
/// write all names so.
fn without_ending<'a>(name: &'a str, ending: &str) -> Option<&'a str> {
    let (stem, rest) = name.split_at_checked(name.len().checked_sub(ending.len())?)?;
    rest.eq_ignore_ascii_case(ending).then_some(stem)
}

/// A file's name, taken apart: `weights.00001-of-00002`.
struct Numbered<'a> {
    /// With its ending.
    name: &'a str,
    stem: &'a str,
    /// The name before the number, such as `weights`.
    set: &'a str,
    /// The number of the part, such as `00001`.
    number: Option<&'a str>,
    /// `00002`, if the name says it.
    count: Option<&'a str>,
}

impl<'a> Numbered<'a> {
    fn new(name: &'a str, stem: &'a str) -> Self {
        let whole = Self { name, stem, set: stem, number: None, count: None };
        let digits = |text: &&str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let of = stem.to_ascii_lowercase().rfind("-of-");
        let (rest, count) = match of.map(|at| (&stem[..at], &stem[at + "-of-".len()..])) {
            Some((rest, count)) if digits(&count) => (rest, Some(count)),
            _ => (stem, None),
        };
        match rest.rfind(['-', '.']).map(|at| (&rest[..at], &rest[at + 1..])) {
            // Without a count, only a dot numbers: `qwen-2` is a name.
            Some((set, number))
                if digits(&number) && (count.is_some() || rest[set.len()..].starts_with('.')) =>
            {
                Self { name, stem, set, number: Some(number), count }
            }
            _ => whole,
        }
    }

    /// The first of as many files as this one says there are that is not there.
    fn missing_of(&self, set: &[Self]) -> Option<String> {
        let (number, count) = (self.number?, self.count?);
        let last: usize = count.parse().ok()?;
        let separator = &self.stem[self.set.len()..=self.set.len()];
        // More than there are files cannot all be there: one of the first few is missing.
        let missing = (1..=last.min(set.len() + 1)).find(|wanted| {
            !set.iter().any(|file| file.number.and_then(|n| n.parse().ok()) == Some(*wanted))
        })?;
        let width = number.len();
        let ending = &self.name[self.stem.len()..];
        Some(format!("{}{separator}{missing:0width$}-of-{count}{ending}", self.set))
    }
}

/// The files that an index names.
///
/// # Errors
///
/// When the index cannot be read, or names something that is no file beside it.
pub fn weights_named_in(index: &Path) -> Result<Vec<String>, NotAModel> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let damaged = |what: String| NotAModel::Index { path: index.into(), what };
    let bytes = read(index, JSON_BYTES_MAX)
        .map_err(|cause| NotAModel::Read { path: index.into(), cause })?;
    let Index { weight_map } =
        serde_json::from_slice(&bytes).map_err(|bad| damaged(bad.to_string()))?;
    let names: BTreeSet<String> = weight_map.into_values().collect();
    if names.is_empty() {
        return Err(damaged("it names no file".to_owned()));
    }
    // A name from the internet must not lead out of the folder.
    let plain = |name: &String| Path::new(name).file_name().is_some_and(|last| *last == **name);
    match names.iter().find(|name| !plain(name)) {
        Some(name) => Err(damaged(format!("{name:?} is not a file name"))),
        None => Ok(names.into_iter().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn among(names: &[&str]) -> Result<WeightFiles, BadWeights> {
        WeightFiles::among(names.iter().copied())
    }

    fn files(names: &[&str]) -> Result<WeightFiles, BadWeights> {
        Ok(WeightFiles::Files(names.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn files_that_count_themselves_are_one_set_whatever_they_are_called() {
        for set in [
            ["weights.00001-of-00002.safetensors", "weights.00002-of-00002.safetensors"],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            ["qwen3-4b-1-of-2.safetensors", "qwen3-4b-2-of-2.safetensors"],
            ["weights.00.safetensors", "weights.01.safetensors"],
        ] {
            assert_eq!(among(&set), files(&set));
        }
        assert_eq!(among(&["qwen-2.safetensors"]), files(&["qwen-2.safetensors"]));
    }

    #[test]
    fn a_set_that_lacks_one_of_those_it_counts_is_not_taken_for_whole() {
        let lacks = |names: &[&str], missing: &str| {
            assert_eq!(among(names), Err(BadWeights::Lacks(missing.to_owned())));
        };
        lacks(&["weights.00002-of-00003.safetensors"], "weights.00001-of-00003.safetensors");
        lacks(
            &["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"],
            "model-00002-of-00003.safetensors",
        );
        lacks(&["model-1-of-99999999999.safetensors"], "model-2-of-99999999999.safetensors");
    }

    #[test]
    fn an_ending_may_be_in_capitals_and_so_may_all_of_a_name() {
        for one in ["model.SAFETENSORS", "MODEL.SAFETENSORS", "Model.SafeTensors"] {
            assert_eq!(among(&[one, "Adapter.safetensors", "other.safetensors"]), files(&[one]));
        }
        let set = ["MODEL-00001-OF-00002.SAFETENSORS", "MODEL-00002-OF-00002.SAFETENSORS"];
        assert_eq!(among(&set), files(&set));
        let lacks = among(&set[1..]);
        assert_eq!(lacks, Err(BadWeights::Lacks(set[0].replace("OF", "of"))));
        let index = "MODEL.SAFETENSORS.INDEX.JSON";
        assert_eq!(among(&[index, "w1.safetensors"]), Ok(WeightFiles::Index(index.to_owned())));
        // Where disks tell them apart, the one that other loaders look for.
        assert_eq!(among(&[INDEX, index]), Ok(WeightFiles::Index(INDEX.to_owned())));
        let both = ["MODEL.SAFETENSORS", "model.safetensors"];
        assert_eq!(among(&both), files(&["model.safetensors"]));
    }

    #[test]
    fn the_index_decides_then_the_usual_name_then_the_only_one() {
        let index = Ok(WeightFiles::Index(INDEX.to_owned()));
        assert_eq!(among(&[INDEX, "model-00001-of-00002.safetensors"]), index);
        let other = "weights.safetensors.index.json";
        assert_eq!(among(&[other, "w1.safetensors"]), Ok(WeightFiles::Index(other.to_owned())));
        let both = ["consolidated.safetensors", "model.safetensors"];
        assert_eq!(among(&both), files(&["model.safetensors"]));
        let adapter = ["adapter_model.safetensors", "tiny.safetensors"];
        assert_eq!(among(&adapter), files(&["tiny.safetensors"]));
        assert_eq!(among(&["original/model.safetensors", "config.json"]), Err(BadWeights::None));
        let Err(BadWeights::Several(what)) = among(&["a.safetensors", "b.safetensors"]) else {
            panic!("one of two was taken");
        };
        assert_eq!(what, "a.safetensors and b.safetensors are several models");
    }
}
