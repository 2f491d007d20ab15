//! How a gRPC call gets to the [`Engine`], whose own calls block.

use std::sync::Arc;

use tonic::{Response, Status};

use super::engine::Engine;
use crate::failure::{Class, Failure};

/// What a call is answered with.
pub(super) type Answer<T> = Result<Response<T>, Status>;

/// Makes a call on the blocking pool. The process ends where the call failed because the metadata
/// did.
pub(super) async fn blocking<T, E>(
    engine: &Arc<Engine>,
    call: impl FnOnce(&Engine) -> Result<T, E> + Send + 'static,
) -> Answer<T>
where
    T: Send + 'static,
    E: Into<Status> + Send + 'static,
{
    let callee = Arc::clone(engine);
    match tokio::task::spawn_blocking(move || call(&callee)).await {
        Ok(Ok(answer)) => Ok(Response::new(answer)),
        Ok(Err(error)) => {
            engine.end_without_metadata();
            Err(error.into())
        }
        Err(panic) => {
            tracing::error!(%panic, "a call failed");
            engine.end_without_metadata();
            Err(Failure::new(Class::Other, "the daemon failed at this; its log says more").into())
        }
    }
}
