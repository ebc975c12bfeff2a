"""What apps log and print: by instance, kept in bounded files per app, streamed with a cursor."""
