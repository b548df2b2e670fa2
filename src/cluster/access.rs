//! Who may override: the one question that admission asks the API server.

use std::{collections::BTreeMap, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::{Api, api::PostParams};

use super::{Cluster, ClusterError, call_within};
use crate::{api::GROUP, core::message::plain};

/// The webhook's own timeout is 2 to 3 s, so its answer must not wait longer than this.
const LIMIT: Duration = Duration::from_secs(1);

/// Who sent a request, as the API server authenticated them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The user's name.
    pub name: String,
    /// The user's uid.
    pub uid: String,
    /// The user's groups.
    pub groups: Vec<String>,
    /// What the authenticator says besides.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Says who may override.
pub trait Access: Send + Sync {
    /// Returns whether `user` has the verb `override` on the RolloutPolicy `policy`, within a second.
    ///
    /// # Errors
    /// When the API server does not answer in time or refuses to say.
    fn may_override<'a>(
        &'a self,
        user: &'a User,
        policy: &'a str,
    ) -> BoxFuture<'a, Result<bool, ClusterError>>;
}

impl Access for Cluster {
    fn may_override<'a>(
        &'a self,
        user: &'a User,
        policy: &'a str,
    ) -> BoxFuture<'a, Result<bool, ClusterError>> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: Some(user.uid.clone()),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    group: Some(GROUP.to_owned()),
                    resource: Some("rolloutpolicies".to_owned()),
                    name: Some(policy.to_owned()),
                    verb: Some("override".to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        async move {
            let api = Api::<SubjectAccessReview>::all(self.client.clone());
            let what = format!("ask whether {:?} may override {policy}", plain(&user.name, 253));
            let answer = call_within(LIMIT, what, api.create(&PostParams::default(), &review)).await?;
            Ok(answer.status.is_some_and(|status| status.allowed))
        }
        .boxed()
    }
}
