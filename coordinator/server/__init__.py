"""What listens: connections, calls, the web page, and the edge of Flower."""
