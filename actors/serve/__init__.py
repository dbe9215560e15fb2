"""The parts of the Ray Serve application: engines, distiller, supervisor, the router between engines and its client."""
