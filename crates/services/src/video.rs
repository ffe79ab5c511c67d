//! `_video`: video processing. No neuron offers it, so a call that is right in everything else is
//! answered `no_service` (seed 002 "Service Overview").

use wire::envelope::Fault;
use wire::errors::Code;

use crate::{Answer, Call, Services, namespace};

pub(crate) async fn call(services: &Services, call: &Call<'_>) -> Result<Answer, Fault> {
    let bucket = &call.caller.bucket;
    if !call.path.is_root() && namespace::resolve(services, bucket, &call.path).await?.is_none() {
        return Err(Code::NoNamespace.into());
    }
    Err(Fault::with(Code::NoService, "no neuron processes video yet"))
}
