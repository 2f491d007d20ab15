//! The part of the Kubernetes CRI that starts a pod, as the kubelet speaks it.
//!
//! Source: k8s.io/cri-api, pkg/apis/runtime/v1/api.proto.

use std::path::Path;

use hyper_util::rt::TokioIo;
use prost::Message;
use tonic::{Request, Status, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;

/// A channel to a daemon's socket.
pub async fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connect = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://local");
    endpoint.connect_with_connector(connect).await.expect("connect")
}

/// The socket's services.
pub struct Cri(tonic::client::Grpc<Channel>);

#[derive(Clone, PartialEq, Message)]
pub struct ImageSpec {
    #[prost(string, tag = "1")]
    pub image: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct PullImage {
    #[prost(message, optional, tag = "1")]
    pub image: Option<ImageSpec>,
}

/// A message with one string: an image's reference, a sandbox's id, a container's id.
#[derive(Clone, PartialEq, Message)]
pub struct Name {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct SandboxMetadata {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub namespace: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct NamespaceOptions {
    /// 2 is the node's: no CNI is asked.
    #[prost(int32, tag = "1")]
    pub network: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct SecurityContext {
    #[prost(message, optional, tag = "1")]
    pub namespaces: Option<NamespaceOptions>,
}

#[derive(Clone, PartialEq, Message)]
pub struct LinuxSandbox {
    #[prost(message, optional, tag = "2")]
    pub security_context: Option<SecurityContext>,
}

#[derive(Clone, PartialEq, Message)]
pub struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<SandboxMetadata>,
    #[prost(string, tag = "3")]
    pub log_directory: String,
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxSandbox>,
}

#[derive(Clone, PartialEq, Message)]
pub struct RunPodSandbox {
    #[prost(message, optional, tag = "1")]
    pub config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<Name>,
    #[prost(message, optional, tag = "2")]
    pub image: Option<ImageSpec>,
    #[prost(string, tag = "11")]
    pub log_path: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct CreateContainer {
    #[prost(string, tag = "1")]
    pub sandbox: String,
    #[prost(message, optional, tag = "2")]
    pub config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pub sandbox_config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Empty {}

impl Cri {
    pub async fn connect(socket: &Path) -> Self {
        Self(tonic::client::Grpc::new(channel(socket).await))
    }

    async fn call<I, O>(&mut self, method: &'static str, message: I) -> Result<O, Status>
    where
        I: Message + 'static,
        O: Message + Default + 'static,
    {
        self.0.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
        let path = PathAndQuery::from_static(method);
        Ok(self.0.unary(Request::new(message), path, ProstCodec::default()).await?.into_inner())
    }

    /// Pulls an image; gives its id.
    pub async fn pull(&mut self, image: &str) -> Result<String, Status> {
        let image = Some(ImageSpec { image: image.to_owned() });
        let pulled: Name =
            self.call("/runtime.v1.ImageService/PullImage", PullImage { image }).await?;
        Ok(pulled.name)
    }

    pub async fn remove_image(&mut self, image: &str) -> Result<(), Status> {
        let image = Some(ImageSpec { image: image.to_owned() });
        let Empty {} =
            self.call("/runtime.v1.ImageService/RemoveImage", PullImage { image }).await?;
        Ok(())
    }

    /// Starts a pod on the node's network with one container of an image; gives the pod's id. The
    /// container logs to `log` in `logs`.
    pub async fn run(&mut self, image: &str, logs: &Path) -> Result<String, Status> {
        let metadata = SandboxMetadata {
            name: "pod".to_owned(),
            uid: "1".to_owned(),
            namespace: "default".to_owned(),
        };
        let security_context =
            SecurityContext { namespaces: Some(NamespaceOptions { network: 2 }) };
        let config = SandboxConfig {
            metadata: Some(metadata),
            log_directory: logs.to_str().expect("UTF-8").to_owned(),
            linux: Some(LinuxSandbox { security_context: Some(security_context) }),
        };
        let run = RunPodSandbox { config: Some(config.clone()) };
        let pod: Name = self.call("/runtime.v1.RuntimeService/RunPodSandbox", run).await?;
        let create = CreateContainer {
            sandbox: pod.name.clone(),
            config: Some(ContainerConfig {
                metadata: Some(Name { name: "container".to_owned() }),
                image: Some(ImageSpec { image: image.to_owned() }),
                log_path: "log".to_owned(),
            }),
            sandbox_config: Some(config),
        };
        let container: Name =
            self.call("/runtime.v1.RuntimeService/CreateContainer", create).await?;
        let Empty {} = self.call("/runtime.v1.RuntimeService/StartContainer", container).await?;
        Ok(pod.name)
    }

    pub async fn remove_pod(&mut self, pod: &str) -> Result<(), Status> {
        for method in [
            "/runtime.v1.RuntimeService/StopPodSandbox",
            "/runtime.v1.RuntimeService/RemovePodSandbox",
        ] {
            let Empty {} = self.call(method, Name { name: pod.to_owned() }).await?;
        }
        Ok(())
    }
}
