"""The pure core of osd: requests, engine, drafters, speculation, records. No Ray, no HTTP; Redis only in `osd.io`."""
