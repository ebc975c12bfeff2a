//! Generates the client from the protos, with protoc. PROTO_PATH lists their roots, separated as in PATH.

use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=PROTO_PATH");
    let roots: Vec<PathBuf> = env::split_paths(&env::var("PROTO_PATH")?).collect();
    let files = ["appsupervisor/catalog/v1/app_catalog.proto", "google/longrunning/operations.proto"];
    tonic_prost_build::configure()
        .build_server(false)
        .include_file("protos.rs")
        .compile_protos(&files.map(PathBuf::from), &roots)?;
    Ok(())
}
