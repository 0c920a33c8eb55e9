//! So many requests a minute for each tenant, which a header names. For keys, tokens and requests
//! at once see `plugins/quota`.

use interlock_policy_sdk as sdk;
use sdk::state::{self, Bucket, Taken};
use sdk::{Admit, Caller, Decision, Identify, Known, Load, Policy, RequestFacts, Span};

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct QuotaByTenant {
    requests_per_minute: u32,
}

sdk::reasons! {
    enum Reason { Named, Nameless, WithinQuota, QuotaExceeded, Unchecked }
}

impl Policy for QuotaByTenant {
    type Settings = Self;
    type Reason = Reason;

    fn new(settings: Self) -> Result<Self, String> {
        match settings.requests_per_minute {
            0 => Err("requests_per_minute must exceed 0, got 0".into()),
            _ => Ok(settings),
        }
    }

    fn needs(&self) -> Vec<String> {
        vec!["headers:x-tenant".into()]
    }
}

impl Identify for QuotaByTenant {
    fn identify(&self, caller: &Caller) -> Known {
        match caller.header("x-tenant") {
            Some(tenant) => sdk::known(tenant, Reason::Named).into(),
            None => sdk::reject(401, Reason::Nameless).detail("x-tenant is missing").into(),
        }
    }
}

impl Admit for QuotaByTenant {
    fn admit(&self, request: &RequestFacts, _: &Load) -> Decision {
        let bucket = Bucket::per_minute(self.requests_per_minute);
        match state::take(&request.tenant, bucket, 1.0) {
            Ok(Taken::Ok(left)) => {
                sdk::admit(Reason::WithinQuota).header("x-requests-left", left as u64).into()
            }
            Ok(Taken::Denied(wait)) => sdk::reject(429, Reason::QuotaExceeded)
                .retry_after(wait.map_or(Span::from_secs(60), |micros| Span { micros }))
                .into(),
            // The store is away: a quota is not worth turning everyone away for.
            Err(_) => sdk::admit(Reason::Unchecked).into(),
        }
    }
}

sdk::export!(QuotaByTenant: identify, admit);

#[cfg(test)]
mod tests {
    use sdk::testing::{Host, idle};
    use serde_json::json;

    use super::*;

    #[test]
    fn each_tenant_has_its_own_minute() {
        let host = Host::new();
        let quota: QuotaByTenant = host.begin(json!({"requests_per_minute": 1})).expect("settings");
        let passes = |tenant: &str| {
            let request = RequestFacts { tenant: tenant.into(), ..host.request() };
            matches!(quota.admit(&request, &idle()), Decision::Admit(_))
        };
        assert!(passes("blue"));
        assert!(!passes("blue"));
        assert!(passes("green"));
        host.pass(Span::from_secs(60));
        assert!(passes("blue"));
    }

    #[test]
    fn who_asks_stands_in_a_header() {
        let host = Host::new();
        let quota: QuotaByTenant = host.begin(json!({"requests_per_minute": 1})).expect("settings");
        let headers = vec![sdk::header("x-tenant", "blue")];
        let known = quota.identify(&Caller { headers, ..host.caller() });
        assert_eq!(known, sdk::known("blue", Reason::Named).into());
        assert!(matches!(quota.identify(&host.caller()), Known::Reject(_)));
    }
}
