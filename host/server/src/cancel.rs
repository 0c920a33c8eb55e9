//! Asking a request to stop, and saying what became of it.
//!
//! Asking may come too late: the last token may have come, or a deadline have struck. So who asks is
//! told how the request ended, in the word that `GET` shows, the log writes and the policies hear;
//! and not that it was asked. That is known as soon as the request's driver has heard of it, and
//! before the pass is over that is in the device.

use std::sync::Arc;

use interlock_request::{CancelCause, Endpoint, RequestId};

use crate::answer_state::AnswerState;
use crate::chunks::EndKind;
use crate::host::ServerHost;
use crate::result_store::StoredRequest;

impl ServerHost {
    /// Asks a tenant's requests of an id to stop. How they ended, which for one that is kept may be
    /// long ago: as cancelled, if any of several did. `None`: there is none.
    pub(crate) async fn cancel(
        &self,
        id: &RequestId,
        tenant: &str,
        cause: CancelCause,
    ) -> Option<EndKind> {
        let mut ends = vec![];
        for asked in self.in_flight.cancel(id, Some(tenant), cause) {
            ends.push(asked.end().await);
        }
        let kept = || match self.results.get(id, tenant)?.1 {
            AnswerState::Ended(result) => Some(EndKind::of(&result.1)),
            AnswerState::Queued | AnswerState::Running => None,
        };
        ends.into_iter().max().or_else(kept)
    }

    /// Asks the request to stop whose result this is to be, and no other of its id. What is kept of
    /// it then; `None`: nothing is any more.
    pub(crate) async fn cancel_kept(&self, stored: &Arc<StoredRequest>) -> Option<AnswerState> {
        let request = &stored.head.info.id;
        if let Some(asked) = stored.canceller.cancel(CancelCause::Operator) {
            let end = asked.end().await.as_str();
            tracing::info!(%request, end, "a client cancelled its stored request");
        }
        self.results.state_of(stored)
    }

    /// The endpoint that a request came through, for whoever has its id: of several the latest,
    /// whosever it is, and before all that are kept one in flight. Policies are to say who asks and
    /// have not yet, so where tenants share an id this may be another tenant's. The one of most
    /// requests, when nobody's is called so.
    pub(crate) fn endpoint_of(&self, id: Option<&RequestId>) -> Endpoint {
        let known =
            id.and_then(|id| self.in_flight.endpoint(id).or_else(|| self.results.endpoint(id)));
        known.unwrap_or(Endpoint::Chat)
    }
}
