// Creates an app through a client made from the protos at run time, waits until it serves, reads it back and deletes it.
//
// Usage: node client.cjs PROTO_DIR HOST:PORT APP_ID ENTRYPOINT. Prints one JSON line per step; exits 1 with the error.
"use strict";

const { promisify } = require("node:util");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const [protos, address, id, entrypoint] = process.argv.slice(2);
const definition = protoLoader.loadSync(
  ["appsupervisor/catalog/v1/app_catalog.proto", "google/longrunning/operations.proto"],
  { includeDirs: [protos, path.join(protos, "third_party")], enums: String, longs: Number, defaults: true },
);
const packages = grpc.loadPackageDefinition(definition);
const credentials = grpc.credentials.createInsecure();
const apps = new packages.appsupervisor.catalog.v1.AppCatalog(address, credentials);
const operations = new packages.google.longrunning.Operations(address, credentials);
const App = definition["appsupervisor.catalog.v1.App"];

function call(client, method, request) {
  const deadline = Date.now() + 30_000;
  return promisify(client[method]).call(client, request, new grpc.Metadata(), { deadline });
}

async function done(operation) {
  while (!operation.done) {
    operation = await call(operations, "WaitOperation", { name: operation.name, timeout: { seconds: 10 } });
  }
  if (operation.error) throw new Error(`${operation.error.code}: ${operation.error.message}`);
  // A plain object of defaults and enum names, as the loader's options have it.
  return App.deserialize(operation.response.value);
}

function report(step, app) {
  console.log(JSON.stringify({ step, name: app.name, state: app.state }));
}

async function main() {
  const name = `apps/${id}`;
  const app = { entrypoint, labels: { client: "node" } };
  report("created", await done(await call(apps, "CreateApp", { appId: id, app, requestId: `create-${id}` })));
  report("read", await call(apps, "GetApp", { name }));
  report("deleted", await done(await call(apps, "DeleteApp", { name, dataPolicy: "DROP" })));
  await call(apps, "GetApp", { name });
}

main()
  .catch((error) => {
    console.error(error.code === grpc.status.NOT_FOUND ? "NOT_FOUND" : error);
    process.exitCode = 1;
  })
  .finally(() => [apps, operations].forEach((client) => client.close()));
