//! The yardstick of `cargo xtask bench http`: servers that answer every request with the same few bytes and do
//! nothing else. `constant axum ADDR` routes with axum, `constant hyper ADDR` is hyper alone.

use std::convert::Infallible;

use axum::{Router, routing::post};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

const BODY: &str = r#"{"type":"urn:dibs:problem:sold_out","title":"Sold out","status":409}"#;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, kind, address] = args.as_slice() else {
        panic!("usage: constant axum|hyper ADDR:PORT");
    };
    let listener = TcpListener::bind(address).await?;
    println!("constant {kind} is listening on http://{}", listener.local_addr()?);
    if kind == "axum" {
        // The body is read, as any server that uses it must.
        let app = Router::new().route("/v1/campaigns/{id}/claims", post(|_: Bytes| async { BODY }));
        return axum::serve(listener, app).await;
    }
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| async {
                use http_body_util::BodyExt;
                let _ = request.into_body().collect().await;
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(BODY.as_bytes()))))
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
