//! Records which request computed the pages that each request reads. The record is made from the pages that
//! the model is given, not from the engine's own index.

use std::collections::{BTreeMap, BTreeSet};

use interlock_engine::{PageId, PrefixSharing, Row};

use crate::scenario::SimRequest;

/// Who computed what lies in each page.
#[derive(Debug, Default)]
pub(crate) struct Authors(BTreeMap<PageId, usize>);

impl Authors {
    /// Of whose pages does this row read, beside its own? Those that it writes are its own from now
    /// on.
    pub(crate) fn read<S>(
        &mut self,
        who: usize,
        row: &Row<'_, S>,
        page_tokens: usize,
    ) -> Vec<usize> {
        let (from, until) = (row.from as usize, row.from as usize + row.tokens.len());
        let written = from / page_tokens;
        let read: BTreeSet<usize> = row.pages[..from.div_ceil(page_tokens)]
            .iter()
            .map(|page| *self.0.get(page).expect("what is read was computed by somebody"))
            .filter(|&author| author != who)
            .collect();
        for page in &row.pages[written..until.div_ceil(page_tokens)] {
            self.0.insert(*page, who);
        }
        read.into_iter().collect()
    }
}

/// Nobody reads what another tenant's request computed, unless all share. How many others it read
/// of, of its own tenant and of others.
pub(crate) fn shares(
    sharing: PrefixSharing,
    requests: &[SimRequest],
    who: usize,
    read: &[usize],
) -> (usize, usize) {
    let tenant = requests[who].tenant;
    let own = read.iter().filter(|&&author| requests[author].tenant == tenant).count();
    let across = read.len() - own;
    let may = sharing == PrefixSharing::All;
    assert!(across == 0 || may, "{who}, of {tenant:?}, read what others computed: {read:?}");
    (own, across)
}
