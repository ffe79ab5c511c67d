//! `_data`: the account's own values on any path (seed 002 "The Data Service").

use std::sync::LazyLock;

use wire::envelope::Fault;
use wire::names::Layer;

use crate::{Answer, Call, Method, Services, entries, layer};

pub(crate) const LAYER: &str = "*data";

pub(crate) async fn call(services: &Services, call: &Call<'_>) -> Result<Answer, Fault> {
    static DATA: LazyLock<Layer> = LazyLock::new(|| layer(LAYER));
    let node = entries::node(call, DATA.clone());
    match call.method {
        Method::Get => entries::get(services, call, &node).await,
        Method::Put | Method::Post => entries::put(services, call, &node).await,
        Method::Delete => entries::delete(services, call, &node).await,
    }
}
