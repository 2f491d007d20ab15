//! Statistics for Prometheus over HTTP, on the loopback interface alone: they name nothing secret,
//! but nobody else needs them either.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};

use super::service::Service;
use crate::stats::prometheus;

/// Where the statistics are.
const PATH: &str = "/metrics";
/// Connections at a time: a scraper needs one.
const CONNECTIONS: usize = 8;
/// What a connection may take, from its first byte to its last.
const LIMIT: Duration = Duration::from_secs(30);
/// Pause after a connection that could not be taken.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers until the process ends. An address that cannot be had is logged, and nothing else
/// suffers from it.
pub(super) async fn serve(address: SocketAddr, service: Arc<Service>) {
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%address, %error, "cannot serve statistics over HTTP");
            return;
        }
    };
    tracing::info!(%address, "statistics are served over HTTP");
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Never closed
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::error!(%error, "cannot take a connection for statistics");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            let answer = service_fn(|request| answer(request, Arc::clone(&service)));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(LIMIT)
                .serve_connection(TokioIo::new(stream), answer);
            // Whoever breaks off or takes too long asks again
            let _ = timeout(LIMIT, connection).await;
            drop(place);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    service: Arc<Service>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let response = match (request.uri().path(), request.method()) {
        (PATH, &Method::GET | &Method::HEAD) => match service.collect().await {
            Ok(stats) => said(StatusCode::OK, stats.to_prometheus(), prometheus::CONTENT_TYPE),
            Err(status) => plain(StatusCode::SERVICE_UNAVAILABLE, status.message()),
        },
        (PATH, _) => {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "expected GET");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            response
        }
        _ => plain(StatusCode::NOT_FOUND, "the statistics are at /metrics"),
    };
    Ok(response)
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    said(status, format!("{text}\n"), "text/plain; charset=utf-8")
}

fn said(status: StatusCode, text: String, kind: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
