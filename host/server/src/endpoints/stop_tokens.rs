//! Reads `stop_token_ids`.

use interlock_request::TokenId;

use super::fields::RequestFields;
use crate::failure::InvalidRequest;

/// More than any model has ends. Each is compared with every token.
const TOKENS_MAX: usize = 64;

/// Tokens that end the answer, as ids; whether the model has them is not known here.
pub(super) fn parse(body: &RequestFields<'_>) -> Result<Vec<TokenId>, InvalidRequest> {
    let Some(item) = body.get("stop_token_ids") else { return Ok(vec![]) };
    let mut count = 0;
    item.list(|one| {
        count += 1;
        if count > TOKENS_MAX {
            return Err(item.wrong_value(&format!("at most {TOKENS_MAX} token ids")));
        }
        one.quoted_token_id()
    })
}
