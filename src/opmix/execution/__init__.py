"""Where the tasks of a run are done: tasks as files of its folder, records as their only results, executors that start them."""
