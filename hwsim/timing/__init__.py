"""Time: reads of Flash, work of each device, the event engine, the closed form."""
