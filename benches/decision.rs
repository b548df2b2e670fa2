//! From the bytes of a review to the bytes of the answer, without HTTP and TLS: the guard and the typed webhook.
//!
//! `cargo bench --bench decision`; criterion's own arguments go behind `--`.

#![allow(clippy::expect_used, reason = "a benchmark that cannot be set up has nothing to measure")]

mod common;

use std::{hint::black_box, time::Duration};

use common::{
    review::{self, Case},
    typed,
};
use criterion::{BenchmarkId, Criterion};
use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use kube::core::admission::{AdmissionRequest, AdmissionReview};
use rollout_guard::{core::policy::Policy, telemetry::Metrics, webhook};
use webhook::judge::Judge;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(50)
        .without_plots()
        .configure_from_args();
    let judge = common::judge(Metrics::default()).expect("the default policy is valid");
    let policy = common::policy().expect("the default policy is valid");
    let now = Timestamp::now();

    let mut group = criterion.benchmark_group("decision");
    for case in Case::ALL {
        let body = review::body(case);
        group.bench_with_input(BenchmarkId::new("guard", case.name()), &body, |bencher, body| {
            bencher.iter(|| guard(&judge, black_box(body), now));
        });
        group.bench_with_input(BenchmarkId::new("typed", case.name()), &body, |bencher, body| {
            bencher.iter(|| kube_typed(&policy, black_box(body), now));
        });
    }
    group.finish();
    let body = review::body(Case::Settled);
    criterion.bench_function("parse/guard", |bencher| {
        bencher.iter(|| webhook::review::parse(black_box(&body)).map(drop));
    });
    criterion.bench_function("parse/typed", |bencher| {
        bencher.iter(|| serde_json::from_slice::<AdmissionReview<Deployment>>(black_box(&body)).map(drop));
    });
    criterion.final_summary();
}

fn guard(judge: &Judge, body: &[u8], now: Timestamp) -> Vec<u8> {
    let request = webhook::review::parse(body).expect("a review");
    let response =
        judge.validate(&request, now).now_or_never().expect("nobody is asked").expect("a Deployment");
    webhook::review::answer(&response).expect("prints")
}

fn kube_typed(policy: &Policy, body: &[u8], now: Timestamp) -> Vec<u8> {
    let review: AdmissionReview<Deployment> = serde_json::from_slice(body).expect("a review");
    let request: AdmissionRequest<Deployment> = review.try_into().expect("a request");
    serde_json::to_vec(&typed::answer(&request, policy, now).into_review()).expect("prints")
}
