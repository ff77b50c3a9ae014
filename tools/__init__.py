"""Programs that write the generated pages and pictures, and the tiny models that pages and tests share."""
