// Creates an app through a client generated from the protos, waits until it serves, reads it back and deletes it.
//
// Usage: client HOST:PORT APP_ID ENTRYPOINT. Prints one JSON line per step; exits 1 with the error's reason.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	catalogv1 "appsupervisor.dev/gen/appsupervisor/catalog/v1"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: client HOST:PORT APP_ID ENTRYPOINT")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, explain(err))
		os.Exit(1)
	}
}

func run(address, id, entrypoint string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	apps := catalogv1.NewAppCatalogClient(conn)
	operations := longrunningpb.NewOperationsClient(conn)
	name := "apps/" + id

	created, err := apps.CreateApp(ctx, &catalogv1.CreateAppRequest{
		AppId:     id,
		App:       &catalogv1.App{Entrypoint: entrypoint, Labels: map[string]string{"client": "go"}},
		RequestId: "create-" + id,
	})
	if err != nil {
		return err
	}
	var app catalogv1.App
	if err := wait(ctx, operations, created, &app); err != nil {
		return err
	}
	report("created", &app)

	read, err := apps.GetApp(ctx, &catalogv1.GetAppRequest{Name: name})
	if err != nil {
		return err
	}
	report("read", read)

	deleted, err := apps.DeleteApp(ctx, &catalogv1.DeleteAppRequest{Name: name, DataPolicy: catalogv1.DeleteAppRequest_DROP})
	if err != nil {
		return err
	}
	if err := wait(ctx, operations, deleted, &app); err != nil {
		return err
	}
	report("deleted", &app)
	_, err = apps.GetApp(ctx, &catalogv1.GetAppRequest{Name: name})
	return err
}

// wait returns when the operation is done, with its result in app.
func wait(ctx context.Context, operations longrunningpb.OperationsClient, operation *longrunningpb.Operation, app *catalogv1.App) error {
	for !operation.GetDone() {
		var err error
		operation, err = operations.WaitOperation(ctx, &longrunningpb.WaitOperationRequest{
			Name:    operation.GetName(),
			Timeout: durationpb.New(10 * time.Second),
		})
		if err != nil {
			return err
		}
	}
	if failure := operation.GetError(); failure != nil {
		return status.ErrorProto(failure)
	}
	return operation.GetResponse().UnmarshalTo(app)
}

func report(step string, app *catalogv1.App) {
	line, _ := json.Marshal(map[string]string{"step": step, "name": app.GetName(), "state": app.GetState().String()})
	fmt.Println(string(line))
}

// explain returns the reason that a program would switch on, or the error as it is.
func explain(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return fmt.Sprintf("%s/%s", info.GetDomain(), info.GetReason())
		}
	}
	return err.Error()
}
