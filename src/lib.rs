//! peel mounts container images without unpacking them.
