//! `_turn`: relay credentials. No neuron relays, so a call that is right in everything else is
//! answered `no_service` (`spec/xirsys.md` §1.3).

use wire::envelope::Fault;
use wire::errors::Code;

use crate::{Answer, Call, Services, namespace};

pub(crate) async fn call(services: &Services, call: &Call<'_>) -> Result<Answer, Fault> {
    let bucket = &call.caller.bucket;
    if !call.path.is_root() && namespace::resolve(services, bucket, &call.path).await?.is_none() {
        return Err(Code::NoNamespace.into());
    }
    Err(Fault::with(Code::NoService, "no neuron relays yet"))
}
